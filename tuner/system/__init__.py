"""What the operating system and other libraries are asked for: files, signals, processes, patches."""
