"""One order through orders, inventory and payments, by the tables of their code."""
