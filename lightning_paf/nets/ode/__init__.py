"""Neural ordinary differential equations: solver block, fields and networks."""
