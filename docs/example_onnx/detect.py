"""Detect objects with a file of ssd-export, without torch: python detect.py detector.onnx photo.jpg drawn.png"""

import json
import sys

import numpy as np
import onnxruntime
from PIL import Image, ImageDraw, ImageOps

model, picture, drawing = sys.argv[1:]
session = onnxruntime.InferenceSession(model)
about = json.loads(session.get_modelmeta().custom_metadata_map["ssd_lightning"])

image = ImageOps.exif_transpose(Image.open(picture)).convert("RGB")
height, width = about["image_size"]
if about["antialias"]:
    resized = image.resize((width, height), Image.Resampling.BILINEAR)
else:
    scale = (image.width / width, 0, 0, 0, image.height / height, 0)
    resized = image.transform((width, height), Image.Transform.AFFINE, scale, Image.Resampling.BILINEAR)
batch = np.asarray(resized).transpose(2, 0, 1)[None]
boxes, labels, scores, count = session.run(["boxes", "labels", "scores", "count"], {"images": batch})

draw = ImageDraw.Draw(image)
edges = boxes[0] * np.array([image.width, image.height, image.width, image.height])
for box, label, score in zip(edges[: count[0]].tolist(), labels[0], scores[0], strict=False):
    if score >= 0.5:
        name = about["classes"][label - 1]
        print(name, f"{score:.3f}", *(f"{edge:.1f}" for edge in box))
        draw.rectangle(box, outline="red", width=3)
        draw.text(box[:2], f"{name} {score:.2f}", fill="red")
image.save(drawing)
