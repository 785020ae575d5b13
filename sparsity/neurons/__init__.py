"""Remove whole neurons: find those that must be removed together, choose the least important ones, and remove them."""
