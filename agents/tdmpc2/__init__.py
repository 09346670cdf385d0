"""TD-MPC2: planning in the latent space of a learned, decoder-free world model."""
