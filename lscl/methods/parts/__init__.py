"""What several systems share, and the components that Fed-LSCL can have instead of the paper's."""
