"""The toy model of features and a classifier, whose dynamics can be worked out; imports no other wing.

It is that of Li et al. 2025 (arXiv 2509.23024, section 3.3 and appendix B). b samples with orthonormal inputs, so that
each has its own row of features F (b x d); a classifier W (d x V); logits F W. Full-batch gradient descent on the sum
over the samples, with P the softmax of the logits and Y the one-hot labels:

    cross-entropy  -sum_k ln P[k, y_k]        E = P - Y      dF = E W^T
    squared error  1/2 ||F W - Y||^2          E = F W - Y    dW = F^T E

How to use it, everything in float64:

    from reptrace.theory import descent, linearized, phases, starts

    begun = starts.start((9, 3, 2, 1), 2, scale=0.1, seeds=64)   # features (S, b, d), classifier (S, d, V), labels (b,)
    runs = descent.descend(begun, rate=0.02, steps=10_000)       # steps (T,), loss (S, T), rankme_centred (S, T), ...
    found = phases.phases(runs.steps, runs.rankme_centred)       # arrays over the seeds
    phases.prevalence(found.all_three)                           # share of the seeds, with a 95 % interval
    linearized.linearized(begun, times)                          # features and classifier while logits are near 0
"""
