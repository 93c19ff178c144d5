"""The detector in plain torch: network, default boxes, matching, losses and post-processing."""
