"""Ray's own handles: every platform service is a named actor.

Run it with ``eval "$(micro env ray)"; python examples/handles.py``, logged in as who administers
the platform: each verb asks for his token.
"""

import ray

import micro_ray

ray.init(logging_level="error", log_to_driver=False)
me = {"credential": micro_ray.Client().token()}

store = ray.get_actor("store", namespace="micro")
begun = ray.get(store.revision.remote(**me))
ray.get(store.write.remote("greeting", b"hello", **me))
print(ray.get(store.read.remote("greeting", **me)).value)

# A verb that streams gives a generator. It goes on until it is cancelled.
changes = store.watch.remote(revision=begun, prefix="greeting", **me)
change = ray.get(next(changes))
print(change.action, change.key)
ray.cancel(changes)

network = ray.get_actor("network", namespace="micro")
print(ray.get(network.call.remote("helloworld", "Helloworld.Call", b'{"name":"Ray"}', **me)))
