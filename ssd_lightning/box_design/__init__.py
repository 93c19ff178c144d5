"""Coverage of a data set by default boxes, and a search for default boxes that fit it better."""
