"""How flat a minimum is: gradient norms, Hessian eigenvalues, rises of the loss, and the loss surface around a model.

`landscape` is the loss over a subset as a function of the parameters, `hessian` its largest eigenvalues, `directions`
the ways in which it is left, `inspection` what is measured of a run, and `figures` what is drawn of it.
"""
