"""Networks from the image of a face to one vector."""
