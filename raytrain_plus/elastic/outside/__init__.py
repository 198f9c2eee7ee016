"""What is not of the run itself: who follows it, steers it, or joins its cluster."""
