"""The crew's place for an assistant that speaks MCP: `python main.py mcp`. Nothing here imports crewai or langchain."""
