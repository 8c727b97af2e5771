"""Networks map images or tables to what a task predicts."""
