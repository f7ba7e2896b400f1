// Package docs holds the documents and the test that runs the commands in them.
package docs
