"""A service that keeps things in the store, with paths of its own on the HTTP door."""

from dataclasses import dataclass

from micro_ray import Service

service = Service("notes", description="Keeps notes")


@dataclass
class Note:
    id: str
    text: str
    version: int


@service.endpoint(path="/notes/{id}", method="PUT")
async def write(id: str, text: str, version: int | None = None) -> Note:
    """Keep a note. With a version only over that one (0: only a new note): who has read an older
    one gets an error instead of undoing what others wrote."""
    record = await service.store.write(id, text.encode(), expected=version)
    return Note(id, text, record.version)


@service.endpoint(path="/notes/{id}", method="GET")
async def read(id: str) -> Note:
    """Read a note."""
    record = await service.store.read(id)
    return Note(id, record.value.decode(), record.version)


@service.endpoint(path="/notes", method="GET")
async def ids(prefix: str = "") -> dict[str, list[str]]:
    """The ids of all notes that begin so."""
    return {"ids": await service.store.keys(prefix=prefix)}


if __name__ == "__main__":
    service.run()
