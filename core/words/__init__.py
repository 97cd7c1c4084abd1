"""What is said to people: the commands that messages name, and text of anybody made safe."""
