"""TD-MPC (Hansen, Wang and Su, ICML 2022), the predecessor of TD-MPC2."""
