"""A service that keeps things in the store, with paths of its own on the HTTP door."""

from dataclasses import dataclass

from micro_ray import Service

service = Service("notes", description="Keeps notes")


@dataclass
class Note:
    id: str
    text: str


@service.endpoint(path="/notes/{id}", method="PUT")
async def write(id: str, text: str) -> Note:
    """Keep a note."""
    await service.store.write(id, text.encode())
    return Note(id, text)


@service.endpoint(path="/notes/{id}", method="GET")
async def read(id: str) -> Note:
    """Read a note."""
    record = await service.store.read(id)
    return Note(id, record.value.decode())


@service.endpoint(path="/notes", method="GET")
async def list(prefix: str = "") -> dict[str, list[str]]:
    """The ids of all notes."""
    return {"ids": await service.store.keys(prefix=prefix)}


if __name__ == "__main__":
    service.run()
