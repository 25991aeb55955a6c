"""Ray's own handles: every platform service is a named actor.

Run it with ``eval "$(micro env ray)"; python examples/handles.py``.
"""

import ray

ray.init(logging_level="error", log_to_driver=False)

store = ray.get_actor("store", namespace="micro")
ray.get(store.write.remote("greeting", b"hello"))
print(ray.get(store.read.remote("greeting")).value)

network = ray.get_actor("network", namespace="micro")
print(ray.get(network.call.remote("helloworld", "Helloworld.Call", b'{"name":"Ray"}')))
