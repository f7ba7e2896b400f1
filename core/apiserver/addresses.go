package apiserver

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	networkingv1 "k8s.io/api/networking/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/apiserver/pkg/admission"
	networkinginformers "k8s.io/client-go/informers/networking/v1"
	"k8s.io/client-go/tools/cache"
	core "k8s.io/kubernetes/pkg/apis/core"
	"k8s.io/kubernetes/pkg/controlplane/controller/defaultservicecidr"
	"k8s.io/kubernetes/pkg/registry/core/service/ipallocator"
	"k8s.io/kubernetes/pkg/registry/core/service/ipallocator/controller"
)

var (
	serviceCIDRsResource = networkingv1.SchemeGroupVersion.WithResource("servicecidrs")
	ipAddressesResource  = networkingv1.SchemeGroupVersion.WithResource("ipaddresses")
)

// addresses allocates the addresses of services by upstream's allocator: out of
// any ServiceCIDR, each held by an IPAddress, so that all servers of a store know.
type addresses struct {
	*ipallocator.MetaAllocator
	server   *Server
	repair   *controller.RepairIPAddress
	repaired chan struct{} // closed when each service has its IPAddress
	ready    atomic.Bool   // once, for good: later there may be no ServiceCIDR to allocate from
}

// newAddresses returns the allocator of the services' storage.
func (s *Server) newAddresses() (ipallocator.Interface, error) {
	var err error
	if !s.served(serviceCIDRsResource.GroupResource()) || !s.served(ipAddressesResource.GroupResource()) {
		s.inMemoryAddresses, err = ipallocator.NewInMemory(&serviceCIDR)
		return s.inMemoryAddresses, err
	}
	informers := s.options.Informers.Networking().V1()
	a := &addresses{server: s, repaired: make(chan struct{})}
	a.MetaAllocator, err = ipallocator.NewMetaAllocator(s.client.NetworkingV1(),
		syncedCIDRs{informers.ServiceCIDRs(), s.closing.Done()}, syncedAddresses{informers.IPAddresses(), s.closing.Done()}, false, nil)
	if err != nil {
		return nil, err
	}
	a.repair = controller.NewRepairIPAddress(repairInterval, s.client, s.options.Informers.Core().V1().Services(), informers.ServiceCIDRs(), informers.IPAddresses())
	s.addresses = a
	return a.MetaAllocator, nil
}

// repairInterval is upstream's.
const repairInterval = 3 * time.Minute

// run gives services what upstream's allocator did not: those of an older store
// their IPAddress, and takes those away that nobody holds.
func (a *addresses) run(ctx context.Context) {
	informers := a.server.options.Informers
	if !cache.WaitFor(ctx, "", informers.Core().V1().Services().Informer().HasSyncedChecker(),
		informers.Networking().V1().ServiceCIDRs().Informer().HasSyncedChecker(), informers.Networking().V1().IPAddresses().Informer().HasSyncedChecker()) {
		ctx, end := context.WithCancel(ctx)
		end() // for what it has begun in New
		a.runRepair(ctx)
		return
	}
	a.runRepair(ctx)
}

func (a *addresses) runRepair(ctx context.Context) {
	stop := make(chan struct{})
	defer context.AfterFunc(ctx, func() { close(stop) })()
	a.repair.RunUntil(sync.OnceFunc(func() { close(a.repaired) }), stop)
	if ctx.Err() == nil {
		a.server.log.Error("the addresses of services are not all recorded: restart to try again")
		<-ctx.Done()
	}
}

// allocates tells whether there is a ServiceCIDR to allocate from.
func (a *addresses) allocates() bool {
	return !errors.Is(a.DryRun().Allocate(serviceAddress()), ipallocator.ErrNotReady)
}

// Admission of services waits until their addresses can be allocated.
type waitForAddresses struct {
	*admission.Handler
	server *Server
}

func newWaitForAddresses(s *Server) *waitForAddresses {
	w := &waitForAddresses{admission.NewHandler(admission.Create, admission.Update), s}
	w.SetReadyFunc(func() bool {
		a := s.addresses
		if a == nil || a.ready.Load() {
			return true
		}
		select {
		case <-a.repaired:
			a.ready.Store(a.allocates())
		default:
		}
		return a.ready.Load()
	})
	return w
}

// Admit implements admission.MutationInterface.
func (w *waitForAddresses) Admit(_ context.Context, a admission.Attributes, _ admission.ObjectInterfaces) error {
	if a.GetResource().GroupResource() == core.Resource("services") && a.GetSubresource() == "" && !w.WaitForReady() {
		return admission.NewForbidden(a, errors.New("not yet ready to handle request"))
	}
	return nil
}

// ServiceRanges are where services get their addresses from, as long as nobody makes another ServiceCIDR.
func ServiceRanges() []netip.Prefix {
	return []netip.Prefix{netip.MustParsePrefix(serviceCIDR.String())}
}

// ensureServiceCIDR makes the default ServiceCIDR, and waits until addresses can
// be allocated from it when the service kubernetes has none yet.
func (s *Server) ensureServiceCIDR(ctx context.Context, d *Direct) error {
	want := &networkingv1.ServiceCIDR{
		ObjectMeta: metav1.ObjectMeta{Name: defaultservicecidr.DefaultServiceCIDRName},
		Spec:       networkingv1.ServiceCIDRSpec{CIDRs: []string{serviceCIDR.String()}},
	}
	if err := (object{serviceCIDRsResource, want}).ensure(ctx, d); err != nil {
		return err
	}
	present, err := d.Get(ctx, serviceCIDRsResource, "", want.Name)
	if err != nil {
		return err
	}
	if cidr, ok := present.(*networkingv1.ServiceCIDR); ok && meta.FindStatusCondition(cidr.Status.Conditions, networkingv1.ServiceCIDRConditionReady) == nil {
		meta.SetStatusCondition(&cidr.Status.Conditions, metav1.Condition{
			Type: networkingv1.ServiceCIDRConditionReady, Status: metav1.ConditionTrue, Message: "Kubernetes default Service CIDR is ready",
		})
		if _, err := d.UpdateStatus(ctx, serviceCIDRsResource, "", cidr); err != nil && !apierrors.IsConflict(err) {
			return err
		}
	}
	if _, err := d.Get(ctx, servicesResource, metav1.NamespaceDefault, "kubernetes"); !apierrors.IsNotFound(err) {
		return err
	}
	if err := wait.PollUntilContextCancel(ctx, time.Millisecond, true, func(context.Context) (bool, error) { return s.addresses.allocates(), nil }); err != nil {
		return fmt.Errorf("wait for the informers of ServiceCIDRs and IPAddresses: %w", err)
	}
	return nil
}

// Upstream's allocator asks ten times a second whether its informers have
// synced. Through these it waits and goes on at once.

type syncedCIDRs struct {
	networkinginformers.ServiceCIDRInformer
	end <-chan struct{}
}

func (i syncedCIDRs) Informer() cache.SharedIndexInformer {
	return waitingInformer{i.ServiceCIDRInformer.Informer(), i.end}
}

type syncedAddresses struct {
	networkinginformers.IPAddressInformer
	end <-chan struct{}
}

func (i syncedAddresses) Informer() cache.SharedIndexInformer {
	return waitingInformer{i.IPAddressInformer.Informer(), i.end}
}

type waitingInformer struct {
	cache.SharedIndexInformer
	end <-chan struct{}
}

func (i waitingInformer) HasSynced() bool {
	select {
	case <-i.HasSyncedChecker().Done():
	case <-i.end:
	}
	return i.SharedIndexInformer.HasSynced()
}
