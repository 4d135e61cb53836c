"""What the routes are given."""

from threading import Event
from typing import Annotated

from fastapi import Depends, Request

from manager.service import Service
from manager.watch import Watch


def the_service(request: Request) -> Service:
    """Return the service that the app was made with."""
    service = request.app.state.service
    assert isinstance(service, Service)
    return service


def the_watch(request: Request) -> Watch:
    """Return the watch that the app was made with."""
    watch = request.app.state.watch
    assert isinstance(watch, Watch)
    return watch


def is_stopping(request: Request) -> Event:
    """Return the event that is set when the process is to end."""
    stopping = request.app.state.stopping
    assert isinstance(stopping, Event)
    return stopping


Stopping = Annotated[Event, Depends(is_stopping)]
TheService = Annotated[Service, Depends(the_service)]
TheWatch = Annotated[Watch, Depends(the_watch)]
