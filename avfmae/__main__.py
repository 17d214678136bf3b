from avfmae.cli import main

main()
