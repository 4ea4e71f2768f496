"""HTTP: routes with their documentation, errors as problems, and the server under them."""

from ironcart.toolkit.http.documents import Operation, Parameter
from ironcart.toolkit.http.problems import Fault, Problem
from ironcart.toolkit.http.routes import Endpoint, application, json_response
from ironcart.toolkit.http.server import Server, listen

__all__ = [
    "Endpoint",
    "Fault",
    "Operation",
    "Parameter",
    "Problem",
    "Server",
    "application",
    "json_response",
    "listen",
]
