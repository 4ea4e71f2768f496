"""HTTP: routes with their documentation, errors as problems, and the server under them."""

from ironcart.toolkit.http.access import Caller, Gate, Scope
from ironcart.toolkit.http.documents import Operation, Parameter
from ironcart.toolkit.http.front import application
from ironcart.toolkit.http.problems import Fault, Problem
from ironcart.toolkit.http.routes import Endpoint, json_response
from ironcart.toolkit.http.server import Server, listen

__all__ = [
    "Caller",
    "Endpoint",
    "Fault",
    "Gate",
    "Operation",
    "Parameter",
    "Problem",
    "Scope",
    "Server",
    "application",
    "json_response",
    "listen",
]
