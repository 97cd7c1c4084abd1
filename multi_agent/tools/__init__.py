"""What agents can do: typed functions that know no agent framework, and one wrapper into CrewAI."""
