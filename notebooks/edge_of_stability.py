# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # The edge of stability and the exact flow, in five minutes
#
# Full-batch gradient descent with weight decay on a batch-normalized model does not stop where the training loss is zero. It
# oscillates at the edge of stability and, while it does, drifts along the minimizers towards flatter ones. On linear regression
# behind a batch normalization this drift has an exact solution, so everything below can be checked against a formula.
#
# Everything runs on the digits that come with scikit-learn; set `FULL = True` for smaller steps and more seeds.

# %%
# %matplotlib inline
from jaxsharp import selfcheck

selfcheck.apply_flag_to_environment()  # before JAX starts; does nothing where JAX does not need it

import jax
import jax.numpy as jnp
import numpy as np

import jaxsharp as js
from jaxsharp import plots

jax.config.update("jax_enable_x64", True)
FULL = False

# %% [markdown]
# ## A problem with a manifold of minimizers
# Thirty images, more pixels than images: many weight vectors fit the digit values exactly. The loss does not depend on the length
# of the weight vector, so sharpness means something only at a fixed length: *spherical sharpness*, the largest eigenvalue of the
# Hessian at $\theta = w/\|w\|$.

# %%
train, _ = js.data.digits(count=30, targets="value")
problem = js.problems.bn_linear_regression(*train)
print(train.inputs.shape, "scale-invariant:", problem.scale_invariant)

w = problem.init(jax.random.key(0))
for c in (1.0, 10.0):
    scaled = jax.tree.map(lambda leaf, c=c: c * leaf, w)
    print(f"c = {c:4.0f}: loss {problem.loss(scaled):.6f}, sharpness {js.curvature.sharpness(problem.loss, scaled):.4f}")

# %% [markdown]
# ## The edge of stability
# From a random point with a small learning rate: the loss falls, and weight decay shrinks $\|w\|$, so the effective learning rate
# $\tilde\eta = \hat\eta / ((1-\hat\eta\hat\lambda)\|w\|^2)$ grows until $\tilde\eta\lambda_1 = 2$. There it stays, and once the
# loss is low the spherical sharpness falls.

# %%
probes = ["loss", js.probes.spherical_sharpness(midpoint=True), "effective_learning_rate", js.probes.metrics(midpoint=True)]
ds = js.simulate(problem, js.optimizers.gd(0.02, weight_decay=0.02), steps=6000, probes=probes, every=10)
ratio = ds.effective_learning_rate * ds.spherical_sharpness / 2
ratio.attrs = {"long_name": "stability ratio η̃ λ1 / 2", "units": "1"}
ds["stability_ratio"] = ratio
print("stability ratio over the last half:", float(ratio[300:].mean().round(4)))
assert abs(float(ratio[300:].mean()) - 1) < 0.05
assert float(ds.spherical_sharpness[-1]) < 0.95 * float(ds.spherical_sharpness.max())

# %%
plots.trajectories(ds, "stability_ratio")

# %%
plots.trajectories(ds, "spherical_sharpness")

# %% [markdown]
# ## The flow
# Averaged over the oscillation, the direction follows the *sharpness-reduction flow* on the minimizers,
# $\mathrm{d}\zeta/\mathrm{d}\tau = -2\,\nabla_\Gamma\log\lambda_1/(4+\|\nabla_\Gamma\log\lambda_1\|^2)$ in the time
# $\tau=\hat\eta\hat\lambda t$. Here it is exactly $\tan\alpha(\tau)=\tan\alpha(0)\,e^{-\tau}$, with $\alpha$ the angle to the
# interpolant of minimum norm. Gradient descent and the flow start from the same points on the manifold, for several step sizes
# and seeds at once.


# %%
def start(key, learning_rate, weight_decay):
    """A minimizer at the angle 1.2, with gradient descent at its equilibrium over it."""
    point = js.problems.interpolant(problem, key, angle=1.2)
    return js.minimizers.edge_of_stability_start(problem, point, learning_rate, weight_decay)


seeds = 8 if FULL else 2
products = [1e-3, 1e-4, 1e-5] if FULL else [1e-3, 1e-4]
rate = 0.1
worst = {}
for product in products:
    over = {"learning_rate": [rate], "weight_decay": [product / rate]}
    steps = round(2 / product)
    options = {"over": over, "seeds": seeds, "steps": steps, "every": steps // 40, "init": start, "progress": False}
    gd = js.sweep(problem, js.optimizers.gd, probes=[js.probes.metrics(midpoint=True)], **options)
    flow = js.sweep(problem, js.flows.sharpness_reduction, probes=["metrics"], **options)
    exact = js.problems.exact_angle(1.2, flow.time.values)
    worst[product] = [float(np.abs(ds.angle - exact)[..., 1:].max()) for ds in (gd, flow)]

for product, (by_gd, by_flow) in worst.items():
    print(f"η̂λ̂ = {product:.0e}: largest angle error of GD+WD {by_gd:.1e}, of the flow {by_flow:.1e} rad")
assert worst[1e-4][0] < 5e-3
assert worst[1e-4][1] < 1e-3
assert worst[1e-4][0] < worst[1e-3][0] / 5  # first order in η̂λ̂

# %%
plots.trajectories(flow, "angle", x="time")

# %% [markdown]
# ## Everything can be differentiated
# Sharpness is a function of the parameters with a gradient, by the envelope rule $\nabla\lambda_1 = \nabla(v_1^\top H v_1)$. The
# tangent part of $\nabla\log\lambda_1$ has the length $2\tan\alpha$ here.

# %%
for angle in (0.3, 1.2):
    point = js.problems.interpolant(problem, jax.random.key(0), angle=angle)
    gradient = jax.grad(lambda w: jnp.log(js.sphere.spherical_sharpness(problem.loss, w)))(point)
    tangent = js.minimizers.project_tangent(problem, point, gradient)
    print(f"α = {angle}: |∇_Γ log λ1| = {js.sphere.norm(tangent):.6f}, 2 tan α = {2 * np.tan(angle):.6f}")
    np.testing.assert_allclose(js.sphere.norm(tangent), 2 * np.tan(angle), rtol=1e-4)
