"""Files: images, arrays, weights, animations; atomic writes; progress bars."""
