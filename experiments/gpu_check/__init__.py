"""What a machine with a GPU is asked to show, in parts that cannot take one another down."""
