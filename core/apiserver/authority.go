package apiserver

// CAKeyPEM is the private key of the server's authority, PEM. It is for the
// controllers in the process that sign certificate requests; it must not leave it.
func (s *Server) CAKeyPEM() []byte { return s.pki.caKeyPEM }
