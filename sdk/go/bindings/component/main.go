// Command component is what is compiled: the plugin, behind the functions that the daemon calls.
package main

import _ "my-plugin/bindings/wit_exports"

func main() {}
