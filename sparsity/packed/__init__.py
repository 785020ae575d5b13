"""The packed file: a network whose zeros take next to no room, its writer, its readers, and its size."""
