"""Tasks and interaction: task families, many MuJoCo worlds in one native call, and the simple `Environment`."""
