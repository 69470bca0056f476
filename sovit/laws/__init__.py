"""The shape law: which width, depth and MLP dimension make the most of a compute budget, inferred from cheap runs.

    sweep ─ runs.jsonl ─ table ─ design ─ solvers/ ─ fit ─ bootstrap, holdout ─> law.json ─ advice/ ─> a shape

The form is equation 3 of Alabdulmohsin et al. 2023, "Getting ViT in Shape" (arXiv 2305.13035). The same solvers fit
L(N, D) of Hoffmann et al. 2022 (`sovit.laws.chinchilla`), whose points are public: what they find there is known.

Shape suffixes: B starts or replicates, J coefficients, Q exponents, P points, K dimensions of a shape.
"""
