"""From a trained model to an avatar set: settings, the jitted program, chunking, the saved set."""
