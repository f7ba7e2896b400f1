/** Guest SDK of ABI qm/1 for AssemblyScript; docs/abi.md is the reference,
 * docs/sdk/assemblyscript.md the guide. A guest is a module that exports what
 * the host calls, and
 *
 *   export { qm_abi_1, qm_alloc } from "./qm";
 *
 * Nothing here allocates for a call, so that `--runtime stub`, which never
 * frees, is enough. What a function is handed is guest memory of the host's: it
 * lives until the function returns. Only verdicts and scores may be written. */
export * from "./host";
export * from "./text";
export * from "./snapshot";
export * from "./pod";
export * from "./proto";
export * from "./objects";
export * from "./json";
export * from "./admission";
