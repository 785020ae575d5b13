"""Keep studies in a folder or in an object store, and decide which process may write there."""
