"""Actors in a studio: CREMA-D, RAVDESS, eNTERFACE'05, IEMOCAP, MSP-IMPROV."""


def test_crema_d(tree):
    tree.media("VideoFlash/1001_DFA_ANG_XX.flv", "AudioWAV/1001_DFA_ANG_XX.wav", "VideoFlash/1091_WSI_NEU_XX.flv")
    tree.media("VideoFlash/1018_IEO_SAD_HI.flv", "VideoFlash/1019_IEO_FEA_LO.flv", "VideoFlash/1073_TSI_HAP_XX.flv")
    tree.media("VideoFlash/1040_ITH_SAD_X.flv")  # its name lacks a letter in the archive
    assert tree.manifest("crema-d", "audio_path", "fold", "subject") == [
        ("VideoFlash/1001_DFA_ANG_XX.flv", "ANG", "AudioWAV/1001_DFA_ANG_XX.wav", "1", "1001"),
        ("VideoFlash/1018_IEO_SAD_HI.flv", "SAD", None, "1", "1018"),
        ("VideoFlash/1019_IEO_FEA_LO.flv", "FEA", None, "2", "1019"),
        ("VideoFlash/1040_ITH_SAD_X.flv", "SAD", None, "3", "1040"),
        ("VideoFlash/1073_TSI_HAP_XX.flv", "HAP", None, "5", "1073"),
        ("VideoFlash/1091_WSI_NEU_XX.flv", "NEU", None, "5", "1091"),
    ]
    assert tree.settings["classes"] == ["ANG", "DIS", "FEA", "HAP", "NEU", "SAD"] and tree.settings["folds"] == "given"
    assert [label for _, label in tree.manifest("crema-d-4")] == ["ANG", "SAD", "SAD", "HAP", "NEU"]  # without FEA, same folds
    tree.media("VideoFlash/1092_IEO_FEA_LO.flv")
    assert len(tree.manifest("crema-d")) == 6
    assert tree.faults == ["VideoFlash/1092_IEO_FEA_LO.flv,is no clip of CREMA-D; expected a name such as 1001_DFA_ANG_XX"]


def test_ravdess(tree):
    for actor, recording in (("01", "01-01-01-01-01"), ("04", "03-02-01-01-04"), ("05", "08-02-02-02-05")):
        tree.media(f"Actor_{actor}/02-01-{recording}.mp4", f"Audio/Actor_{actor}/03-01-{recording}.wav")
    tree.media("Actor_24/01-01-02-01-01-01-24.mp4")  # both modalities in one file
    tree.media("Actor_24/02-02-02-01-01-01-24.mp4")  # song
    assert tree.manifest("ravdess", "audio_path", "fold", "subject") == [
        ("Actor_01/02-01-01-01-01-01-01.mp4", "neutral", "Audio/Actor_01/03-01-01-01-01-01-01.wav", "1", "01"),
        ("Actor_04/02-01-03-02-01-01-04.mp4", "happy", "Audio/Actor_04/03-01-03-02-01-01-04.wav", "1", "04"),
        ("Actor_05/02-01-08-02-02-02-05.mp4", "surprised", "Audio/Actor_05/03-01-08-02-02-02-05.wav", "2", "05"),
        ("Actor_24/01-01-02-01-01-01-24.mp4", "calm", None, "6", "24"),
    ]
    assert tree.settings["classes"] == ["neutral", "calm", "happy", "sad", "angry", "fearful", "disgust", "surprised"]


def test_enterface(tree):
    tree.media("enterface database/subject 11/anger/sentence 1/s12_an_1.avi")  # the file's name gives another person
    tree.media("enterface database/subject 3/Happiness/sentence 5/s_3_ha_5.avi")
    tree.media("enterface database/subject 10/surprise/sentence 2/s10_su_2.avi", "subject_44/fear/sentence_3/s44_fe_3.avi")
    assert tree.manifest("eNTERFACE'05", "fold", "subject") == [
        ("enterface database/subject 3/Happiness/sentence 5/s_3_ha_5.avi", "happiness", "1", "3"),
        ("enterface database/subject 10/surprise/sentence 2/s10_su_2.avi", "surprise", "1", "10"),
        ("enterface database/subject 11/anger/sentence 1/s12_an_1.avi", "anger", "2", "11"),
        ("subject_44/fear/sentence_3/s44_fe_3.avi", "fear", "5", "44"),
    ]


def test_iemocap(tree):
    dialog = "Session1/dialog/{}/Ses01F_impro01.{}"
    tree.text(
        dialog.format("EmoEvaluation", "txt"),
        "% [START_TIME - END_TIME] TURN_NAME EMOTION [V, A, D]",
        "",
        "[6.2901 - 8.2357]\tSes01F_impro01_F000\tneu\t[2.5000, 2.5000, 2.5000]",
        "C-E2:\tNeutral;\t()",
        "[10.0100 - 11.3925]\tSes01F_impro01_M001\texc\t[4.0000, 3.5000, 3.0000]",
        "[14.8872 - 18.0175]\tSes01F_impro01_F002\txxx\t[2.5000, 2.5000, 2.5000]",
        "[18.1000 - 19.0000]\tSes01F_impro01_M003\tfru\t[2.0000, 3.5000, 3.5000]",
    )
    tree.media(dialog.format("avi/DivX", "avi"), dialog.format("wav", "wav"))
    tree.text("Session5/dialog/EmoEvaluation/Ses05M_script01_1.txt", "[1.5 - 2.5]\tSes05M_script01_1_F000\thap\t[4, 4, 4]")
    tree.media("Session5/dialog/avi/DivX/Ses05M_script01_1.avi")
    one, five = "Session1/dialog/avi/DivX/Ses01F_impro01.avi", "Session5/dialog/avi/DivX/Ses05M_script01_1.avi"
    left, right = (0, 0, 360, 480), (360, 0, 360, 480)  # who wears the markers is on the left: the letter of the dialog's name
    assert tree.manifest("iemocap", "audio_path", "start", "end", "fold", "subject", "face") == [
        (one, "neutral", "Session1/dialog/wav/Ses01F_impro01.wav", 6.2901, 8.2357, "1", "Ses01F", left),
        (one, "happy", "Session1/dialog/wav/Ses01F_impro01.wav", 10.01, 11.3925, "1", "Ses01M", right),
        (five, "happy", None, 1.5, 2.5, "5", "Ses05F", right),
    ]


def test_msp_improv(tree):
    tree.text(
        "Evalution.txt",
        "UTD-IMPROV-S01A-F01-P-FM01.avi; A; A:2.5; V:2.6; D:3.0 ; N:3.1;",
        "ev1; Angry,Disgust; ; A:1.0; V:4.0; D:3.0; N:5.0;",
        "UTD-IMPROV-S13A-M06-S-MF09.avi; N; A:NaN; V:NaN; D:NaN ; N:NaN;",
        "UTD-IMPROV-S13A-M06-S-MF10.avi; X; A:2.5; V:2.6; D:3.0 ; N:3.1;",
        "UTD-IMPROV-S13A-F06-R-FM02A.avi; H; A:2.5; V:2.6; D:3.0 ; N:3.1;",
    )
    tree.media("session1/S01A/P/MSP-IMPROV-S01A-F01-P-FM01.avi", "session1/S01A/P/MSP-IMPROV-S01A-F01-P-FM01.wav")
    tree.media("session6/S13A/S/MSP-IMPROV-S13A-M06-S-MF09.avi")
    assert tree.manifest("msp_improv", "audio_path", "fold", "subject") == [
        ("session1/S01A/P/MSP-IMPROV-S01A-F01-P-FM01.avi", "angry", "session1/S01A/P/MSP-IMPROV-S01A-F01-P-FM01.wav", "1", "F01"),
        ("session6/S13A/S/MSP-IMPROV-S13A-M06-S-MF09.avi", "neutral", None, "6", "M06"),
    ]
    assert tree.faults == ["session6/S13A/R/MSP-IMPROV-S13A-F06-R-FM02A.avi,is not there"]
    assert tree.settings["classes"] == ["angry", "happy", "neutral", "sad"]
