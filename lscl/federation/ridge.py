"""Ridge regression from features to classes: a head in closed form, from sums that do not depend on any order.

    G = sum_i f_i f_i^T,    P = sum_i f_i y_i^T,    W = P^T (G + lambda tr(G) / d I)^{-1}

f_i is the feature of an image, (d,), and y_i its class as a one-hot vector, (C,). The sums of several tasks or clients
are added, so nothing is forgotten and nobody's images are needed twice; W is the same in any order of them
(ACIL, arXiv 2205.14922; federated, AFL, arXiv 2405.16240). The scale of lambda is the mean eigenvalue of G, so that one
value serves features of any size and number.

Two things are made of it. As a head on the frozen features it is a control that trains nothing. As a second head on a
system's own features it separates what the features have lost and what a head has never learned that was trained
under a task mask. It says what the question asked here, at this scale, can be answered with; it is no verdict on a
method that was proposed for other scales.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from lscl.federation.client import Client
from lscl.federation.method import Method
from lscl.federation.passes import map_batches

SIZE = 64  # images per forward pass: on a CPU faster than larger ones
# lambda in mean eigenvalues of G, for a client's own images: chosen on the tuning seed 7 alone, on the frozen features.
LAMBDA = 0.03


def ridge_sums(features: Tensor, labels: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """The sums G and P of some images, in float64.

    Args:
        features: (n, d).
        labels: (n,) int64.
        num_classes: C.

    Returns:
        G (d, d) and P (d, C).
    """
    f = features.double()
    return f.T @ f, f.T @ F.one_hot(labels, num_classes).double()


def ridge_head(gram: Tensor, products: Tensor, strength: float) -> Tensor:
    """W = P^T (G + lambda tr(G) / d I)^{-1}, by one Cholesky factorisation.

    Args:
        gram: G, (d, d) float64.
        products: P, (d, C) float64.
        strength: lambda, in mean eigenvalues of G.

    Returns:
        W, (C, d) float64; zero if there is no solution, because G is zero or not finite.
    """
    size = len(gram)
    scale = gram.trace() / size
    factor, failed = torch.linalg.cholesky_ex(gram + strength * scale * torch.eye(size, dtype=gram.dtype))
    if failed or not scale > 0:
        return torch.zeros_like(products.T)
    return torch.cholesky_solve(products, factor).T.contiguous()


@torch.no_grad()
def fit_own_ridge(method: Method, client: Client) -> Tensor | None:
    """The closed-form head on a system's own features, fitted at the end of a task to the client's images so far.

    Only sums are kept: those of an earlier task are of the features as they were at its end. If the features drift, the
    sums age with them, which is what forgetting in the features means. Nothing else of the client changes and nothing
    random is drawn.

    Client state: `ridge.gram` (d, d) and `ridge.products` (d, C), in float64, private.

    Args:
        method: the system, see `Method.features_of`.
        client: the client, at the end of its task.

    Returns:
        W, (C, d) float64 on the CPU; None if the system has no features of its own.
    """
    if not method.has_features:
        return None
    client.model.eval()
    index = client.train_index
    features = map_batches(client.train, index, lambda batch: method.features_of(client, batch), SIZE)  # (n, d)
    sums = ridge_sums(features, client.train.batch(index).labels, method.num_classes)
    for name, new in zip(("ridge.gram", "ridge.products"), sums, strict=True):
        client.state[name] = client.state.get(name, 0) + new.cpu()
    return ridge_head(client.state["ridge.gram"], client.state["ridge.products"], LAMBDA)
