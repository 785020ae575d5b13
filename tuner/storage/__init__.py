"""Where a study is kept: a folder, or a prefix in an object store, and which process may write there."""
