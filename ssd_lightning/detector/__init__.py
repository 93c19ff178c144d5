"""The detector in plain PyTorch: network, default boxes, matching, losses and post-processing."""
