"""What is done with a trained model: evaluate it on data, and predict rows."""
