"""Define LpSGD, an optimizer on the Lp sphere. Its step is computed by compiled code or by operations of torch, and can
be recorded as a CUDA graph."""
