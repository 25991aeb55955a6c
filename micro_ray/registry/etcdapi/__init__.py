"""Messages of etcd's API, version 3: what the registry uses of them.

``kv.proto`` and ``rpc.proto`` have the packages, names and numbers of etcd's own files;
``kv_pb2`` and ``rpc_pb2`` are made from them by ``./scripts/protos``. No two sets of etcd's
messages fit into one process, so nothing that brings its own (the packages named ``etcd3``) may be
loaded beside these.
"""
