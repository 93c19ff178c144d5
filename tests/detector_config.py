"""The plain config of a small detector, as checkpoints store it."""

MODEL = {
    "_target_": "ssd_lightning.SSD",
    "backbone": {"_target_": "ssd_lightning.Tiny", "base_channels": [4, 8, 8], "channels": 8},
    "default_boxes": {
        "_target_": "ssd_lightning.DefaultBoxes",
        "scales": [0.2, 0.37, 0.54, 0.71, 0.88, 1.05],
        "aspect_ratios": [[2], [2], [2], [2], [2]],
    },
    "num_classes": 1,
    "image_size": 64,
}
POSTPROCESS = {
    "_target_": "ssd_lightning.PostProcess",
    "score_threshold": 0.02,
    "max_detections": 50,
}
CONFIG = {"model": MODEL, "postprocess": POSTPROCESS, "classes": ["banana"], "config": {"seed": 0, "trainer": None}}
