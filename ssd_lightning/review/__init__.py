"""Looking back at finished runs, from the files of their folders alone."""

from ssd_lightning.review.detections import StoredDetections, load_detections, save_detections

__all__ = ["StoredDetections", "load_detections", "save_detections"]
