"""What a trained network makes of images: prediction, evaluation, scores."""
