//! The integration tests: one binary, one file for each part of the contract.

mod architecture;
mod command_line;
mod configuration;
mod endings;
mod faults;
mod histories;
mod interrupting;
mod leases;
mod leaving;
mod line;
mod offers;
mod replicas;
mod road;
mod sessions;
mod store_contract;
mod support;
