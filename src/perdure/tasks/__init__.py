"""What is learnt: tasks, their splits, and suites of them."""
