"""Coverage of a data set by default boxes, and a search for better default boxes."""
