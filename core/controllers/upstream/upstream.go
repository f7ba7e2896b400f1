// Package upstream runs the housekeeping controllers that are Kubernetes' own:
// service accounts, root certificates, join tokens, aggregated roles,
// certificate signing, quotas, ranges of service addresses and of nodes' pods, protection of volumes in use and the types in
// admission policies. They are fed by the engine's informers and write through
// its in-memory client.
package upstream

import (
	"context"
	"crypto"
	"errors"
	"fmt"
	"slices"
	"sync"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/util/cert"
	"k8s.io/client-go/util/keyutil"
	"k8s.io/klog/v2"
	"k8s.io/kubernetes/pkg/controller/bootstrap"
	"k8s.io/kubernetes/pkg/controller/certificates"
	"k8s.io/kubernetes/pkg/controller/certificates/approver"
	"k8s.io/kubernetes/pkg/controller/certificates/authority"
	"k8s.io/kubernetes/pkg/controller/certificates/cleaner"
	"k8s.io/kubernetes/pkg/controller/clusterroleaggregation"
	"k8s.io/kubernetes/pkg/controller/serviceaccount"
	"k8s.io/kubernetes/pkg/controller/volume/pvcprotection"
	"k8s.io/kubernetes/pkg/controller/volume/pvprotection"
	"k8s.io/utils/clock"

	"github.com/quaymaster/quaymaster/core/controllers/kinds"
	"github.com/quaymaster/quaymaster/core/informer"
)

// Options of the controllers. All but Kinds and Clock are required.
type Options struct {
	// Client of an administrator.
	Client kubernetes.Interface
	// Informers are asked for in New, and neither started nor stopped.
	Informers informers.SharedInformerFactory
	// Kinds are what quotas may count; nil runs no quota controller.
	Kinds kinds.Source
	// Config reaches what the client does not: the scale of any kind. nil runs no
	// controller of disruption budgets.
	Config *rest.Config
	// Authority is the cluster's, PEM, whose key signs approved requests, and Trust
	// what is published to every namespace. Changed is closed when they are others.
	Authority func() (certPEM, keyPEM []byte)
	Trust     func() []byte
	Changed   func() <-chan struct{}
	// NodeRanges are given to nodes in parts; of no Cluster none is.
	NodeRanges NodeRanges
	// Clock of the certificates' validity; the real one by default.
	Clock clock.PassiveClock
}

// Controllers are assembled and ready to run.
type Controllers struct {
	run []func(context.Context)
}

// workers of each controller; its objects are few.
const workers = 2

// New assembles the controllers. Call it before the informers are started.
func New(o Options) (*Controllers, error) {
	if o.Client == nil || o.Informers == nil {
		return nil, errors.New("housekeeping controllers: Client and Informers are required")
	}
	if o.Clock == nil {
		o.Clock = clock.RealClock{}
	}
	if _, err := parseAuthority(o.Authority()); err != nil {
		return nil, fmt.Errorf("housekeeping controllers: %w", err)
	}
	core, requests := o.Informers.Core().V1(), o.Informers.Certificates().V1().CertificateSigningRequests()
	accounts, err := serviceaccount.NewServiceAccountsController(klog.Background(), core.ServiceAccounts(), core.Namespaces(), o.Client, serviceaccount.DefaultServiceAccountsControllerOptions())
	if err != nil {
		return nil, fmt.Errorf("housekeeping controllers: service accounts: %w", err)
	}
	publish, err := newPublisher(o)
	if err != nil {
		return nil, fmt.Errorf("housekeeping controllers: root certificates: %w", err)
	}
	tokens, err := bootstrap.NewTokenCleaner(o.Client, core.Secrets(), bootstrap.TokenCleanerOptions{TokenSecretNamespace: metav1.NamespaceSystem})
	if err != nil {
		return nil, fmt.Errorf("housekeeping controllers: join tokens: %w", err)
	}
	policyStatus, err := o.late("policy status", newPolicyStatus, o.Informers.Admissionregistration().V1().ValidatingAdmissionPolicies().Informer())
	if err != nil {
		return nil, fmt.Errorf("housekeeping controllers: %w", err)
	}
	ctx := context.Background() // carries upstream's logger alone
	c := &Controllers{run: []func(context.Context){
		with(accounts.Run),
		publish.run,
		tokens.Run,
		with(clusterroleaggregation.NewClusterRoleAggregation(o.Informers.Rbac().V1().ClusterRoles(), o.Client.RbacV1()).Run),
		policyStatus,
	}}
	if !informer.LeftOut(requests.Informer()) {
		serving := &servingApprover{client: o.Client, nodes: core.Nodes().Lister()}
		sign := &signer{client: o.Client, authority: o.Authority, clock: o.Clock}
		c.run = append(c.run,
			with(approver.NewCSRApprovingController(ctx, o.Client, requests).Run),
			with(certificates.NewCertificateController(ctx, "csrapproving-kubelet-serving", o.Client, requests, serving.handle).Run),
			with(certificates.NewCertificateController(ctx, "csrsigning", o.Client, requests, sign.handle).Run),
			with(cleaner.NewCSRCleanerController(o.Client.CertificatesV1().CertificateSigningRequests(), requests).Run))
	}
	if !informer.LeftOut(core.PersistentVolumeClaims().Informer()) {
		claimProtection, err := pvcprotection.NewPVCProtectionController(klog.Background(), core.PersistentVolumeClaims(), core.Pods(), o.Client)
		if err != nil {
			return nil, fmt.Errorf("housekeeping controllers: claims in use: %w", err)
		}
		c.run = append(c.run, with(claimProtection.Run))
	}
	if !informer.LeftOut(core.PersistentVolumes().Informer()) {
		c.run = append(c.run, with(pvprotection.NewPVProtectionController(klog.Background(), core.PersistentVolumes(), o.Client).Run))
	}
	o.Informers.Networking().V1().IPAddresses().Informer() // asked for now, so that it starts with the others
	ranges, err := o.late("ranges of service addresses", newServiceCIDRs, o.Informers.Networking().V1().ServiceCIDRs().Informer())
	if err != nil {
		return nil, fmt.Errorf("housekeeping controllers: %w", err)
	}
	c.run = append(c.run, ranges)
	workloads, err := o.workloads()
	if err != nil {
		return nil, fmt.Errorf("housekeeping controllers: %w", err)
	}
	c.run = append(c.run, workloads...)
	if len(o.NodeRanges.Cluster) > 0 {
		nodes, err := o.late("ranges of nodes", newNodeRanges, core.Nodes().Informer())
		if err != nil {
			return nil, fmt.Errorf("housekeeping controllers: %w", err)
		}
		c.run = append(c.run, nodes)
	}
	if o.Kinds != nil {
		quota, err := o.late("resource quota", newQuota, core.ResourceQuotas().Informer())
		if err != nil {
			return nil, fmt.Errorf("housekeeping controllers: %w", err)
		}
		c.run = append(c.run, quota)
	}
	c.run = slices.DeleteFunc(c.run, func(run func(context.Context)) bool { return run == nil }) // of kinds that are left out
	return c, nil
}

func with(run func(context.Context, int)) func(context.Context) {
	return func(ctx context.Context) { run(ctx, workers) }
}

// Run runs all controllers until the context ends and waits for each.
func (c *Controllers) Run(ctx context.Context) error {
	var all sync.WaitGroup
	for _, run := range c.run {
		all.Go(func() { run(ctx) })
	}
	all.Wait()
	return nil
}

func parseAuthority(certPEM, keyPEM []byte) (*authority.CertificateAuthority, error) {
	certs, err := cert.ParseCertsPEM(certPEM)
	if err != nil {
		return nil, fmt.Errorf("authority's certificate: %w", err)
	}
	key, err := keyutil.ParsePrivateKeyPEM(keyPEM)
	if err != nil {
		return nil, fmt.Errorf("authority's key: %w", err)
	}
	private, ok := key.(crypto.Signer)
	if !ok {
		return nil, fmt.Errorf("authority's key: a %T cannot sign", key)
	}
	public, ok := private.Public().(interface{ Equal(crypto.PublicKey) bool })
	if !ok || !public.Equal(certs[0].PublicKey) {
		return nil, errors.New("authority: certificate and key do not belong together")
	}
	return &authority.CertificateAuthority{RawCert: certPEM, RawKey: keyPEM, Certificate: certs[0], PrivateKey: private}, nil
}
